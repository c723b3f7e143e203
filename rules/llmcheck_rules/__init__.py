"""Rule packs: data only. There are none yet; see rules/README.md."""
