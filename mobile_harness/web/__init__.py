"""Any phone's browser: a page that runs the ONNX student there, and the server that gives it."""
