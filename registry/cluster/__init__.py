"""Judgement of a Kubernetes cluster: which pods would fail once the registry has ended.

`workloads` reads which pods use which images, and the pods to be made next; `kubelet` and `secrets`
hold the rules by which a kubelet asks the registry again for an image that its node has; `facts` is
a node's statement about its images, read by `look`; `safety` judges all of it; `holders` are pods
that keep images on nodes. Only `look` reaches the cluster, by kubectl, and its nodes, over ssh or
in pods.
"""
