"""Every tolerance of the suite, in one place."""

from __future__ import annotations

SIGMA = 1e-6
"""Relative error of a singular value, whatever computed it."""

GRAM = 1e-6
"""Of an element G_ij, relative to √(G_ii G_jj)."""

GRAM_HEAVY_TAILED = 4e-6
"""The same, and σ's, where a few columns hold nearly all of the energy: the scalar kernel adds
1024 products in one fp32 sum, and whatever follows the large one loses bits."""

COMBINE_TERMS = 3e-7
"""Error of a 16-bit output before rounding, relative to |θ₀| + Σ |w_t Δ_t|: sums in fp32."""

VECTOR = 2e-6
"""‖u − u_oracle‖₂ of a leading singular vector with a gap; also relative, of weights."""

LINE = 2e-6
"""Slope, intercept, R² and explained variance, relative to their scale."""

EXACT = 1e-12
"""What float64 arithmetic alone may differ by."""

POWER_RESIDUAL = 1e-6
"""‖G u − σ² u‖ / σ² of power iteration."""

EQUAL_BITS = 0.9999
"""Share of 16-bit outputs that are the rounding of the float64 result."""

EQUAL_BITS_F32 = 0.95
"""The same for float32 outputs, end to end: the weights come from fp32 products."""

ULP = 1
"""No output is further than this from the rounding of the float64 result, unless the sum cancels
to less than CANCELLED of its terms."""

CANCELLED = 1e-4

SMALL_MOVE_F32 = 0.2
"""Σ |w_t Δ_t| relative to θ̂ below which a float32 output, too, is within ULP end to end."""

WEIGHTS = 3e-7
"""Relative error of weights from fp32 products, as it shows in θ̂ − θ₀."""
