"""The torch storage: a Graph over the lifted, functional `ExportedProgram`. Nothing is imported here."""
