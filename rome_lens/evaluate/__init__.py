"""What did an edit change? The paper's scores before and after (paper sections 3.3 and 3.4)."""
