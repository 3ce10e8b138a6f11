"""What people look at: HTML pages, contact sheets, boxes drawn on pictures, pictures in the terminal."""
