"""The command line, one file per subcommand, and what the subcommands share."""
