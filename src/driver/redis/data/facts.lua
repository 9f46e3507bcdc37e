-- KEYS: keys. ARGV: bytes after which the rest is left to the next call. Gives the facts of the
-- first keys, and 'none' for what is gone.
local answers, left = {}, tonumber(ARGV[1])
for i, key in ipairs(KEYS) do
  local kind = kind_of(key)
  if kind == 'none' then
    answers[i] = { kind }
  else
    local told, _, cost = facts(key, kind)
    answers[i] = told
    left = left - cost
    if left < 0 then break end
  end
end
return answers
