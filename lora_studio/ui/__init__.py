"""The browser interface: forms and views over the library. No model is loaded in its process."""
