-- Write the health records of a worker, one for each of its queues, with the depths of the queues.
--
-- KEYS  the queues. A cluster gets one a call
-- ARGV[1]  id of the worker     ARGV[2]  ms after which the records expire
-- ARGV[3]  the members of the record, as JSON without braces
-- ARGV[4]  the record in arq's form, but for the depth at its end     ARGV[5]  its key ('' for one for each queue)
-- ARGV[6]  the depths of the worker's queues as JSON ('' for those of the keys)
local id, lifetime, members, arq_record, arq_key, queued = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local depths, by_queue = {}, {}
for number, queue in ipairs(KEYS) do
    depths[number] = redis.call('ZCARD', queue)
    by_queue[queue] = depths[number]
end
if queued == '' then queued = cjson.encode(by_queue) end
for number, queue in ipairs(KEYS) do
    local as_arq = arq_record .. string.format('%.0f', depths[number])
    local record = '{"queued":' .. queued .. ',' .. members .. ',"arq":' .. cjson.encode(as_arq) .. '}'
    redis.call('SET', queue .. ':health-check:' .. id, record, 'PX', lifetime)
    redis.call('SET', arq_key ~= '' and arq_key or queue .. ':health-check', as_arq, 'PX', lifetime)
    redis.call('SADD', queue .. ':health-checks', id)
    redis.call('PEXPIRE', queue .. ':health-checks', lifetime)
end
return 1
