"""A fleet that is only played: devices of the device protocol without weights, to try rollouts and servers on.

They enrol, prove possession, poll, report and sign as real agents do, over real HTTP. What they do not do is verify,
fetch and compute: how a release does on a device is drawn (`behaviour`), and its digest is the signed one.
"""
