"""An answer in a conversation, in no API's own words."""
