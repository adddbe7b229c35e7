"""CONTROL PLANE: who holds which socket, and is it alive.

One registry process counts the references of shared sockets and passes tickets on (ledger, custody, liveness, server,
manager); every other process has one channel to it (client, connect). What they say is one table (messages, handshake);
where they meet is a directory (runtime), and whoever comes first starts the process (launch). A stranger to `kernel`:
nothing here reads from or writes to a shared socket, and the registry's death ends none.
"""
