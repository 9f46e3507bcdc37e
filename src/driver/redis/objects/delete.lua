-- ARGV: key, condition, etag of each. Gives nothing or the refusal for each.
local answers = {}
for at = 2, #ARGV, 3 do
  local key = ARGV[at]
  local no = lost(key, ARGV[at + 1], ARGV[at + 2])
  if not no then
    drop(key)
    strike(key)
  end
  table.insert(answers, no or { 'ok' })
end
return answers
