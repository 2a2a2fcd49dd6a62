"""The numbers by which the error of a fit to a convolution is read, relative to the convolution's norm."""

ROUNDING = 1e-9
"""An error below the bound by more than this contradicts the theorem; an error up to this is zero up to rounding."""
ZERO_ERROR = 1e-3
"""The largest distance from a convolution, relative to its norm, that counts as zero."""
