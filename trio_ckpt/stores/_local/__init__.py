"""What the stores on this machine share: files, locks, blobs, the fence, the watermark.

It may not know how records are laid out.
"""
