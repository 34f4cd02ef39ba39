"""Removal of channels.

`coupling` finds the channels that must be removed together, with a rule for each kind of layer in
`rules` and `passing`; `scoring` ranks them; `cutting` removes them.
"""

import tfcompress.rewrite.channels.passing
import tfcompress.rewrite.channels.rules  # noqa: F401 (registers the rules)
