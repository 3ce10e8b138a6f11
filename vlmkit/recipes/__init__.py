"""How the models inside the package are made. Not installed: no command needs it."""
