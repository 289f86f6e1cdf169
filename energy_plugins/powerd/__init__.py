"""The privileged helper: sets power limits for users who may not, within what a site allows, and puts them back.

It runs as root and stands alone: nothing but the standard library, NVML, and files of this package that import no
more than that. ``python -I -S .../energy_plugins/powerd --config FILE`` starts it; docs/powerd.md says who can do what.

A message goes through `protocol` (what is asked), `peers` (who asks, proven by the kernel), `policy` (whether they
may) and `leases` (what is set, journalled and put back); `server` moves the bytes.
"""
