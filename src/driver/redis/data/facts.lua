-- KEYS: keys. ARGV: bytes after which the rest is left to the next call. Gives the facts of the
-- first keys, and 'none' for what is gone.
local answers, left = {}, tonumber(ARGV[1])
for i, key in ipairs(KEYS) do
  local kind = kind_of(key)
  if kind == 'none' then
    answers[i] = { kind }
  else
    local told, all = facts(key, kind)
    answers[i] = told
    if kind == 'string' then
      left = left - #all
    else
      for _, one in ipairs(all) do left = left - #one - 16 end
    end
    if left < 0 then break end
  end
end
return answers
