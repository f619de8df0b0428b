"""What the stores on this machine share: files, locks, blobs, the fence, the watermark.

This package must not know how records are laid out.
"""
