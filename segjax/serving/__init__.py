"""Serving: a trained network behind HTTP.

Here belongs what stands between a request and a prediction: the limits of an upload, the gathering
of waiting pictures into batches, and the forms in which labels are answered. Not here: the
prediction itself (`segjax.segmenter`, which is handed in) and the options of the verb
(`segjax.commands.serve`).
"""
