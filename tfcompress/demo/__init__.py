"""The main job on embedded data: teacher, student, one fit, one file, one table."""
