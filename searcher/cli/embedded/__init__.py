"""recipe -> all services on this machine: layout.py, what is where; programs.py, what runs; deployment.py, its life."""
