-- ARGV: key, condition, etag of each. Gives nothing or the refusal for each.
local answers = {}
for at = 2, #ARGV, 3 do
  local key = ARGV[at]
  local old = read(key)
  local no = lost(key, old, ARGV[at + 1], ARGV[at + 2])
  if old and not no then
    redis.call('DEL', head(key))
    drop(old)
    strike(key)
  end
  answers[#answers + 1] = no or { 'ok' }
end
return answers
