"""The graph: one module per table. A body is load -> compute -> return; its docstring is what the
UI shows. SQL, locks and retries are not written here: outputs go through the write contract.
"""
