"""Settings in the files of kohya's sd-scripts and kohya_ss: import and export."""
