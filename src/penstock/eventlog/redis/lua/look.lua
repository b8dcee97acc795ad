-- A stream's id and fields; one whose producer is gone is ended first. Only its bucket, if it is in another one; or
-- nothing, where there is no stream.
-- ARGV: its id; or "", and the owner and the key of which it is the latest

local id = ARGV[1]
if id == '' then
  id = redis.call('GET', pointer(ARGV[2], ARGV[3]))
  if not id then
    return {}
  end
end
settle(id)
local row = redis.call('HGETALL', base .. ':stream:' .. id)
if #row > 0 then
  return { id, row }
end
return { redis.call('GET', base .. ':bucket:' .. id) or nil }
