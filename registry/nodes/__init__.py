"""The files with which a node trusts a registry and pulls through it, per container runtime.

`target` says which registry; `docker`, `containerd` and `podman` each turn it into files, purely;
`runtimes` picks among them; `journal` puts a plan in place and takes it back; `commands` prints it
for an operator to paste.

`script` renders all of that, pulls and proofs as a shell script; `prefetch` runs it over `ssh` on
many nodes, reads their output (`node_output`), and concludes the causes of failures (`causes`).
"""
