"""What tests of several rooms share: processes, clients, servers, content."""
