"""evaltools: evaluation from stored vectors, on a CPU, without torch.

Examples
--------
>>> import embedstore
>>> from evaltools.probe import ProbeOptions, probe
>>> store = embedstore.open("store")  # doctest: +SKIP
>>> results = probe(store, task="lvef", options=ProbeOptions(pools=("clip", "meanstd")))  # doctest: +SKIP
"""
