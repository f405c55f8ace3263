"""What a node needs to trust a registry and to pull through it, for each container runtime.

`target` says which registry; `docker`, `containerd` and `podman` each turn it into files, purely;
`runtimes` picks among them; `journal` puts a plan in place and takes it back; `commands` prints it
for an operator to paste.
"""
