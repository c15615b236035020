"""The studio's folders on disk: projects, job folders and the queue of GPU jobs."""
