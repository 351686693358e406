"""Vector -> trace. Trained in torch (``model``, ``loss``, ``train``), run in numpy (``encode``)."""
