"""Removal of channels.

What is coupled (`coupling`, with a rule for each kind of layer in `rules` and `passing`), what
scores low (`scoring`), and the cut (`cutting`).
"""

import tfcompress.rewrite.channels.passing
import tfcompress.rewrite.channels.rules  # noqa: F401 (registers the rules)
