"""What counted samples prove, exactly, on server and device alike."""
