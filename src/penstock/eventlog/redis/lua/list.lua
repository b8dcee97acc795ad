-- All streams of a bucket: of each its id, its fields, and its readers by process. ARGV: "" or "=" and the owner

local found = {}

local function add(index, id)
  local stream = base .. ':stream:' .. id
  if redis.call('EXISTS', stream) == 0 then
    redis.call('ZREM', index, id)
    return
  end
  if ARGV[1] ~= '' and redis.call('HGET', stream, 'owner') ~= string.sub(ARGV[1], 2) then
    return
  end
  settle(id)
  local readers = redis.call('HGETALL', base .. ':readers:' .. id)
  local living = {}
  for at = 1, #readers, 2 do
    if lives(readers[at]) then
      living[#living + 1] = readers[at]
      living[#living + 1] = readers[at + 1]
    end
  end
  found[#found + 1] = { id, redis.call('HGETALL', stream), living }
end

for _, index in ipairs({ base .. ':ended', base .. ':running' }) do
  for _, id in ipairs(redis.call('ZRANGE', index, 0, -1)) do
    add(index, id)
  end
end
return found
