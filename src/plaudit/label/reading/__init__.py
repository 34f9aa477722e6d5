"""Items and labels as people look for them: searched and filtered, a page at a time."""
