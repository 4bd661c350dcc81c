"""An example plug-in for graphopt: one pass and one backend."""
