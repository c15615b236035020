"""The interface in the browser: forms and pictures over the library, with no model in its process."""
