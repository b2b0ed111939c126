/* Puts the interactive figure in the place of its picture when that comes into view. Nothing is loaded from elsewhere:
   plotly.js and the figures lie beside the pages; they are scripts, so that pages read from disk have them too. */
(() => {
  const NARROW = 600; // pixels; below, panels stand one below the other
  const loading = {};
  const load = (address) =>
    (loading[address] ??= new Promise((done, failed) => {
      const script = document.createElement("script");
      Object.assign(script, { src: address, onload: done, onerror: failed });
      document.head.append(script);
    }));

  async function show(picture) {
    const { plotly, figure } = picture.dataset;
    await Promise.all([load(plotly), load(figure)]);
    const forms = window.romeLensFigures[figure.split("/").pop()];
    const box = document.createElement("div");
    box.className = "figure";
    box.setAttribute("role", "img");
    box.setAttribute("aria-label", picture.alt);
    picture.replaceWith(box);
    let drawn;
    const draw = () => {
      const form = box.clientWidth < NARROW ? "narrow" : "wide";
      if (form === drawn) return;
      drawn = form;
      const { data, layout } = structuredClone(forms[form]);
      Plotly.react(box, data, { ...layout, autosize: true, width: undefined }, { displayModeBar: false, responsive: true });
    };
    draw();
    window.addEventListener("resize", draw);
  }

  const seen = new IntersectionObserver(
    (entries) =>
      entries.forEach(({ isIntersecting, target }) => {
        if (!isIntersecting) return;
        seen.unobserve(target);
        show(target).catch(() => {}); // the picture stays
      }),
    { rootMargin: "300px" },
  );
  document.querySelectorAll("img[data-figure]").forEach((picture) => seen.observe(picture));
})();
