"""The built-in passes: one file each, registered under the entry-point group "graphopt.passes" like a
stranger's."""
