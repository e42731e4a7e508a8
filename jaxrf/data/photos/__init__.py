"""Photos and videos without poses: choosing images, and structure from motion by COLMAP."""
