"""Where a corruption that moves a picture reads each pixel: by it labels go where the picture went."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F


@final
@dataclass(frozen=True, slots=True)
class Motion:
    """For each place of the shifted pictures the one of the originals; both axes run from -1 to 1, x first.

    Attributes:
        grid: for each pixel, [pictures, height, width, 2].
        matrix: the same for every place, [pictures, 2, 3]; None where the map is not affine.
    """

    grid: Tensor
    matrix: Tensor | None = None

    @classmethod
    def affine(cls, matrix: Tensor, height: int, width: int) -> "Motion":
        """By a matrix [pictures, 2, 3]."""
        return cls(F.affine_grid(matrix, [len(matrix), 1, height, width], align_corners=False), matrix)

    @classmethod
    def of_pixels(cls, rows: Tensor, columns: Tensor) -> "Motion":
        """By the pixels that are read, [pictures, height, width] each, counted from the top and the left."""
        height, width = rows.shape[-2:]
        return cls(torch.stack(((columns + 0.5) * (2 / width) - 1, (rows + 0.5) * (2 / height) - 1), -1))

    def masks(self, masks: Tensor, outside: float) -> Tensor:
        """Masks [pictures, ..., height, width] as the pictures moved, by the nearest pixel.

        They may be coarser or finer than the pictures.
        """
        height, width = masks.shape[-2:]
        grid = self.grid.to(masks.device)
        if grid.shape[1:3] != (height, width):
            grid = F.interpolate(grid.movedim(-1, 1), (height, width), mode="bilinear").movedim(1, -1)
        columns, rows = _pixels(grid, height, width).round().long().unbind(-1)
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        index = (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).flatten(1)
        planes = masks.reshape(len(masks), -1, height * width)
        moved = planes.gather(2, index[:, None].expand(-1, planes.shape[1], -1))
        moved = torch.where(inside.flatten(1)[:, None], moved, torch.full_like(moved, outside))
        return moved.view_as(masks)

    def boxes(self, picture: int, boxes: Tensor) -> Tensor:
        """Boxes of one picture (left, top, right, bottom, in pixels) as it moved, cut off at its border.

        Turned boxes become the upright ones around them; what left the picture has no area.
        """
        if not len(boxes):
            return boxes
        if self.matrix is None:
            return self._boxes_by_pixel(picture, boxes)
        height, width = self.grid.shape[1:3]
        sides = boxes.new_tensor([width, height])
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].view(-1, 4, 2) / sides * 2 - 1
        matrix = self.matrix[picture].to(boxes)
        places = torch.linalg.solve(matrix[:, :2], (corners - matrix[:, 2]).flatten(0, 1).T).T.view_as(corners)
        found = torch.cat((places.amin(1), places.amax(1)), 1).clamp(-1, 1)
        return (found + 1) / 2 * sides.repeat(2)

    def _boxes_by_pixel(self, picture: int, boxes: Tensor) -> Tensor:
        """Around all pixels that were read inside of a box."""
        height, width = self.grid.shape[1:3]
        x, y = (_pixels(self.grid[picture], height, width) + 0.5).to(boxes).unbind(-1)
        found = torch.zeros_like(boxes)
        for row, (left, top, right, bottom) in enumerate(boxes):
            inside = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
            if inside.any():
                down, across = inside.any(1).nonzero(), inside.any(0).nonzero()
                ends = (across.min(), down.min(), across.max() + 1, down.max() + 1)
                found[row] = torch.stack(ends).to(boxes)
        return found


def _pixels(grid: Tensor, height: int, width: int) -> Tensor:
    return ((grid + 1) * grid.new_tensor([width, height]) - 1) / 2
