-- Record for a while which tasks a worker of some queues knows. Return for each queue the last command to the worker, or
-- false.
--
-- KEYS  the queues. A cluster gets one a call
-- ARGV[1]  ms for which this holds     ARGV[2]  id of the worker's process     then the tasks
local lifetime, process = tonumber(ARGV[1]), ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local holds_until = string.format('%.0f', now + lifetime)
local commands = {}
for number, queue in ipairs(KEYS) do
    local key = queue .. ':tasks'
    for i = 3, #ARGV do redis.call('ZADD', key, holds_until, ARGV[i]) end
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    redis.call('PEXPIRE', key, lifetime)
    local command = redis.pcall('GET', queue .. ':command:' .. process)
    commands[number] = type(command) == 'string' and command
end
return commands
