-- ARGV: from, its etag or '', to, condition, etag, 'keep' or 'replace', then fields that come in
-- place of those of the same name or, with 'replace', of all attributes.
local from, to = ARGV[2], ARGV[4]
local no = lost(from, 'there', ARGV[3]) or lost(to, ARGV[5], ARGV[6])
if no then return no end
local all = redis.call('HGETALL', head(from))
local at, kept = {}, {}
for i = 1, #all, 2 do
  at[all[i]] = all[i + 1]
  -- The names of all but attributes have one letter.
  if ARGV[7] == 'keep' or #all[i] == 1 then
    table.insert(kept, all[i])
    table.insert(kept, all[i + 1])
  end
end
if at.r ~= '' then share(at.b) end
local etag, time = version(), now()
drop(to)
fields(head(to), kept, 1, #kept)
fields(head(to), ARGV, 8, #ARGV)
redis.call('HSET', head(to), 'e', etag, 't', time)
enter(to)
return { 'ok', redis.call('HGETALL', head(to)), '' }
