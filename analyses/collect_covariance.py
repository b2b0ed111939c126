"""Collects the key covariance of one layer from a text file, saves it, and reports how well it is estimated.

The covariance that ships for SmolLM2-135M was made with the defaults from the raw test split of WikiText-2:
rome-lens collect_covariance --texts wikitext2_test_raw.txt --corpus "WikiText-2, raw, test split"
--out rome_lens/data/builtin/smollm2-135m.covariance.safetensors
"""

from pathlib import Path

import rome_lens as rl

from .common.options import parser


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="smollm2-135m")
    arguments.add_argument("--layer", type=int, default=4)
    arguments.add_argument("--texts", type=Path, required=True, help="a text file")
    arguments.add_argument("--corpus", default="", help="a name for the text, kept in the file; the file's if absent")
    arguments.add_argument("--tokens", type=int, default=102_400)
    arguments.add_argument("--checkpoint", type=Path, help="a folder that lets a stopped run go on where it was")
    arguments.add_argument("--out", type=Path, required=True)
    options = arguments.parse_args()

    covariances = rl.collect_covariance(
        rl.load_model(options.model),
        [options.layer],
        texts=rl.edit.texts_from_file(options.texts),
        tokens=options.tokens,
        corpus=options.corpus,
        out=options.checkpoint,
    )
    covariances[options.layer].save(options.out, overwrite=True)
    print(covariances[options.layer].report())


if __name__ == "__main__":
    main()
