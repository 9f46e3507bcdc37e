-- ARGV: body, numbers of chunks. Throws those away that no head has come to name.
for at = 3, #ARGV do
  local name = chunk(ARGV[2], ARGV[at])
  if redis.call('PTTL', name) > 0 then redis.call('UNLINK', name) end
end
return { 'ok' }
