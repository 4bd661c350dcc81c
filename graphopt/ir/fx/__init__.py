"""The torch storage: a Graph over the functional, lifted form of an `ExportedProgram`. Nothing is imported here."""
