-- KEYS: keys. Gives the kind of each.
local kinds = {}
for i, key in ipairs(KEYS) do kinds[i] = kind_of(key) end
return kinds
