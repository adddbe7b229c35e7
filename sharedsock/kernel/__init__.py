"""DATA PLANE: this process's side of the system-call line. Real sockets, waiting, abort; knows no registry."""
