"""The eight symmetries of a square, numbered as the published data numbers them."""

import numpy as np

DIHEDRAL_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)
"""The id of each transform's inverse."""


def dihedral(grid: np.ndarray, transform: int) -> np.ndarray:
    """Transform the last two axes of ``grid``, ``[..., rows, columns]``; the result may be a view.

    Ids: 0 identity, 1 to 3 that many quarter turns counter-clockwise, 4 left-right flip, 5 up-down flip,
    6 transpose, 7 reflection in the other diagonal.

    Raises:
        ValueError: ``transform`` is not 0 to 7.
    """
    if transform not in range(8):
        raise ValueError(f"dihedral: transform is {transform}, expected 0 to 7")
    if transform < 4:
        return np.rot90(grid, transform, axes=(-2, -1))
    if transform == 4:
        return np.flip(grid, -1)
    if transform == 5:
        return np.flip(grid, -2)
    transposed = np.swapaxes(grid, -2, -1)
    return transposed if transform == 6 else np.flip(transposed, (-2, -1))
