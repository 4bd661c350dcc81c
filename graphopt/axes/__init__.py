"""What the sizes of a graph have to do with each other: every dimension as a product of axes, equal axes unified."""
